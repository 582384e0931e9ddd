"""What is on disk: sparse layer files with presence maps, tables of contents, documents, metadata images.

Layout below the cache directory (0700, files 0600):

    version                                       the layout's number
    layers/<layer hex>/<toc hex>/data             one layer's address space, sparse
    layers/<layer hex>/<toc hex>/presence         one byte per leaf: absent, present in this boot, synced
    layers/<layer hex>/<toc hex>/state            JSON: boot id, sizes, what was audited
    layers/<layer hex>/<toc hex>/used             when each MiB was last used
    tocs/<layer hex>/<name>.{toc,windows}         tables of contents and their checkpoint windows
    images/<key>.erofs                            compiled metadata images
    documents/sha256/<hex>                        manifests and configs
    references/<hex>.json                         what a reference named when it was last asked
    catalogue/<hex>.json                          which images are kept, and pinned
    quarantine/<layer hex>-<toc hex>.json         tables of contents that were found to lie
    traces/<hex>/  packs/<hex>/                   what starts touched first, and boot packs of it, by manifest
    containers/                                   those of `lazyfs run`
    room                                          how much the cache takes, while there is a quota
    locks/  tmp/                                  named locks; what is being made

Everything comes into being in tmp/ under a lock that dies with its maker, and is renamed into place. Plain
methods block (a write, an fsync), but for a hit's `has` and `read`; callers put them into threads.
"""
