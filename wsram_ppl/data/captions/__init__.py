"""Photos (or scenes) and sentences about them: data for models that write captions.

Importing this package registers the data sources ``scenes`` and ``flickr8k``.

**The batch.** A caption's batch is ``(words, mask, *maps)``, so that a model's program is
``def forward(self, words, mask, *maps)`` for any number of layers:

* ``words`` [B, T + 1], int64: the words of B sentences, as numbers of the source's vocabulary.
  ``words[:, 0]`` is the start mark; ``words[:, t]`` for t = 1..T is the word that step t predicts from
  ``words[:, :t]``; each sentence ends with the end mark, and repeats it up to the batch's longest.
* ``mask`` [B, T + 1], bool: whether word t belongs to the likelihood. False at 0 (the start mark is
  given) and in the padding, True from word 1 to the first end mark; ``mask.sum(-1)`` is the number of
  predicted words, the end mark included.
* ``maps``: for each layer of the conv net, in the order of the experiment, its features [B, C, H, W],
  float32. Rows run downwards and columns to the right, over the whole picture: cell (i, j) is centred
  at x = (2 j + 1) / W - 1, y = (2 i + 1) / H - 1, with x and y from -1 to 1 over the picture, as in
  :mod:`wsram_ppl.primitives.glimpses` and in ``grid_sample(align_corners=False)``.

The datum is a caption: a photo with five captions is five data. T differs from batch to batch.
"""

from wsram_ppl.captions.bleu import Bleu, corpus_bleu
from wsram_ppl.data.captions.batches import CaptionSource, Examples
from wsram_ppl.data.captions.flickr8k import FlickrCaptions
from wsram_ppl.data.captions.flickr8k_layouts import Flickr8k, Photo, read_flickr8k
from wsram_ppl.data.captions.scenes import SceneCaptions
from wsram_ppl.data.captions.vocabulary import Vocabulary, normalize

__all__ = [
    "Bleu",
    "CaptionSource",
    "Examples",
    "Flickr8k",
    "FlickrCaptions",
    "Photo",
    "SceneCaptions",
    "Vocabulary",
    "corpus_bleu",
    "normalize",
    "read_flickr8k",
]
