"""Ray Serve deployments: the only folder that imports Ray."""
