"""Property tests have no time limit of their own: on a machine that does other things, a stall says nothing."""

from hypothesis import settings

settings.register_profile("stepdial", deadline=None)
settings.load_profile("stepdial")
