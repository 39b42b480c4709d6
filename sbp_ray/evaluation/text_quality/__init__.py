"""What texts are like: samples of synthetic and real text measured beside the corpus, the quality panel."""
