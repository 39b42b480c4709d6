"""Public benchmarks with lm-eval: what is asked, each model's answers, and how models differ by question."""
