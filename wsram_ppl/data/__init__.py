"""Data sources: where the batches of a run come from (:class:`wsram_ppl.interfaces.DataSource`)."""
