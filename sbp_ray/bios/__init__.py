"""bioS: a corpus of invented entities, as in Physics of Language Models, of which all that is true is known."""
