"""Indexes that other tools put into a layer or beside an image, as our own Toc values.

embedded        eStargz and zstd:chunked: a JSON table inside the blob, of chunks with sha256 digests
  estargz         its place and form in gzip layers
  zstd_chunked    its place and form in zstd layers
  json_listing    what the JSON says: members and their chunks
  packed          chunks as spans of the packed address space
soci            a zTOC: tar offsets, and checkpoints of the gzip stream with digests of compressed spans
  flatbuffer      tables of the FlatBuffers format
  gzip_zinfo      checkpoints and windows

An index says what it says; who vouches for it, and whether that is enough, is not decided here.
"""
