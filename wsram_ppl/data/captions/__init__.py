"""Photos (or scenes) and sentences about them: data for models that write captions.

The sources are :class:`~wsram_ppl.data.captions.scenes.SceneCaptions` and
:class:`~wsram_ppl.data.captions.flickr8k.FlickrCaptions`.

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
