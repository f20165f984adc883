"""The corpus: slices in, checked; gene tokens, sub-slices and virtual cells out, as training shards."""
