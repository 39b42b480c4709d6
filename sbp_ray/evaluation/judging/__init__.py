"""A language model as judge of synthetic text: prompts and labelled cases of ours, an endpoint of the user's."""
