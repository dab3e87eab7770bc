"""The application: the only place where deployments are wired.

`serve run deployments.app:build model=DIR max_replicas=2`, or `import_path` and `args` of a Serve config. Serve reads
the type of `args` from the annotation itself, so annotations are not postponed here.
"""

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from deployments.autoscaling import QueueSecondsPolicy
from deployments.ingress import Ingress
from deployments.ranks import placement
from deployments.replica import Replica
from deployments.settings import AppArgs

METRICS_WINDOW = 4
"""Reports of work in the look-back of the autoscaler."""


def build(args: AppArgs) -> serve.Application:
    """Router and replicas with the options that follow from `args`."""
    replica = serve.deployment(Replica, name="Replica").options(
        max_ongoing_requests=args.max_ongoing_requests,
        graceful_shutdown_timeout_s=args.drain_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=args.health_period_s,
        request_router_config=RequestRouterConfig(
            request_router_class="deployments.replica_choice:WorkRouter",
            request_routing_stats_period_s=args.routing_stats_period_s,
        ),
        **placement(args),
        **_replicas(args),
    )
    router = serve.deployment(serve.ingress()(Ingress), name="Router").options(
        num_replicas=args.routers,
        ray_actor_options={"num_cpus": args.router_cpus},
        max_ongoing_requests=args.max_ongoing_requests,
        graceful_shutdown_timeout_s=args.drain_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=args.health_period_s,
    )
    return router.bind(replica.bind(args), args)


def _replicas(args: AppArgs) -> dict[str, object]:
    """A fixed number of replicas, or autoscaling on seconds of queued work."""
    if args.min_replicas == args.max_replicas:
        return {"num_replicas": args.min_replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            metrics_interval_s=args.metrics_interval_s,
            look_back_period_s=METRICS_WINDOW * args.metrics_interval_s,
            upscale_delay_s=args.upscale_delay_s,
            downscale_delay_s=args.downscale_delay_s,
            policy=AutoscalingPolicy(
                policy_function=QueueSecondsPolicy,
                policy_kwargs={
                    "target_s": args.target_queue_s,
                    "targets_s": args.target_queues_s,
                },
            ),
        )
    }
