"""`featprep bench`: how fast a model's maps are made here, and how fast they could be.

figures are pure arithmetic; material is what is measured on; limit, stages and peers measure, each
in a process of its own (processes), while load watches what else the machine does. Prints nothing.
"""
