"""The mounted face: a merged tree, or layers as files, through FUSE and the kernel's EROFS."""
