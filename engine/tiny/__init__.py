"""stepdial-tiny: the small model that ships, with its tasks, tokenizer and training.

    python -m engine.tiny.tokenizer engine/tiny/checkpoint
    python -m engine.tiny.train --run RUN --minutes 110 --tokens 6000
    python -m engine.tiny.export RUN/state.pt engine/tiny/checkpoint
    python -m engine.tiny.evaluate engine/tiny/checkpoint --split test --count 300

The shipped weights: 2.3M parameters, 18M tokens (noisy halves included) in 58 minutes of work on two cores that other
work shared, in legs that resumed one another while the schedules in `train.py` and `sampler.py` were being settled. AR
alone up to 6.4M tokens, AR + 0.3 x diffusion up to 13.6M tokens, then the rate back up and `--diffusion-weight 1.0`,
because denoising still got addition and sorting wrong. The last leg ended at 2% of the peak rate.
"""
