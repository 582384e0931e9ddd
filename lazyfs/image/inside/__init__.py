"""Looking inside images without a mount: listing, comparing, copying out, software found."""
