"""The read path: layers whose missing spans are fetched when somebody reads them."""
