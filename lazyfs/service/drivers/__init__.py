"""How trees are mounted for containers: by EROFS, by FUSE, or as works here."""
