"""stepdial-tiny: the small model that ships, with its tasks, tokenizer and training.

    python -m engine.tiny.tokenizer engine/tiny/checkpoint
    python -m engine.tiny.train --run RUN --minutes 110 --tokens 6000
    python -m engine.tiny.export RUN/state.pt engine/tiny/checkpoint
    python -m engine.tiny.evaluate engine/tiny/checkpoint --split test --count 300

The shipped weights: 2.3M parameters, 42M tokens (noisy halves included) in some 110 minutes of work on two cores that
other work shared. The first 18M tokens in legs that resumed one another while the schedules in `train.py` and
`sampler.py` were being settled: AR alone up to 6.4M, AR + 0.3 x diffusion up to 13.6M, then `--diffusion-weight 1.0`,
because denoising still got addition and sorting wrong. Then 24M more from those weights, at peak rate for the first
13M, with a decay to 1% at the end:

    python -m engine.tiny.train --run RUN --start engine/tiny/checkpoint --diffusion-weight 1.0 --matrix-rate 0.005 \
        --other-rate 0.002 --tokens 6000 --minutes 75 --more sorting=1.5 addition=1.5

There is no draft adapter: without one a round of self-speculation over blocks of 32 already settles 24 tokens.
"""
