"""Reads Flickr8k (Hodosh, Young, Hockenmaier, 2013) in all common layouts.

=========  ==============================================================  =========================
layout     captions                                                        splits
=========  ==============================================================  =========================
illinois   ``Flickr8k.token.txt``: name, #, number, tab, caption           split files
karpathy   ``dataset_flickr8k.json``                                       in the same file
kaggle     ``captions.txt``: CSV of name, caption, below a line of titles  split files, if any
=========  ==============================================================  =========================

Split files are ``Flickr_8k.trainImages.txt``, ``Flickr_8k.devImages.txt`` and
``Flickr_8k.testImages.txt``, with a name per line; without them, the photos are split at random by a
seed. Files and photos may be in any folders at most three levels below the root. A photo is found by
its name, whatever folder is written before it.

Problems with some photos or lines never stop the reading: they are left out, counted, and reported in
one line per kind. If nothing usable is left, an InputError says so, and why, in one line.
"""

from wsram_ppl.data.captions.layouts.photos import Photo
from wsram_ppl.data.captions.layouts.reading import Flickr8k, Layout, read_flickr8k
from wsram_ppl.data.captions.layouts.table import Split

__all__ = ["Flickr8k", "Layout", "Photo", "Split", "read_flickr8k"]
