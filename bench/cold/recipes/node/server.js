const app = require("express")();
app.get("/", (_, answer) => answer.send("hello\n"));
app.listen(8081, "127.0.0.1");
