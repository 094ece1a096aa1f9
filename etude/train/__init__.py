"""Algorithms that change a model: one file is one algorithm; the maths they share are pure functions.

Legend of the axes, in the names of all tensors: C completion tokens of all samples, one after the other;
S samples (one prompt with one completion); K parts of a reward; P pairs of a preference; V vocabulary.
`mask_C` is True where a token takes part, `sequence_C` is the index into S of a token's sample, ascending;
`group_S` is equal for samples of one prompt. Losses are to be minimised; logprobs are natural logarithms.
"""
