"""Recovery: give a pruned network back what pruning cost it, from unlabelled images or by training.

`reestimate_norms` and `reconstruct` need images but no labels and take seconds to a minute;
`finetune` trains, with the dense model as teacher; `fidelity` says how far two networks agree.
"""
