"""The Ray cluster of an experiment: connect to it or start a local one, and find room for the processes of the stages.

session     open and close a Ray session
connection  check that a Ray cluster responds at an address
nodes       the nodes, how many processes they hold, and which jobs use them
resources   the processes that the stages need, and whether a cluster can hold them
waiting     wait for room that other jobs use, with a deadline
"""

from lakd_ray.cluster.connection import check_connection
from lakd_ray.cluster.nodes import Bundle, Node, all_nodes, beside_driver, capacity, free_nodes
from lakd_ray.cluster.resources import (
    ResourceRequest,
    check_resources,
    evaluation_request,
    max_concurrent_trials,
    missing_resources,
    preparation_request,
    resolve_device,
    serving_request,
    training_request,
    trials_request,
    with_known_device,
    with_local_device,
)
from lakd_ray.cluster.session import cluster_address, experiment_session, local_cpus, local_nodes, ray_session
from lakd_ray.cluster.waiting import RoomWait, reserved, wait_for_room, watched_room

__all__ = [
    "Bundle",
    "Node",
    "ResourceRequest",
    "RoomWait",
    "all_nodes",
    "beside_driver",
    "capacity",
    "check_connection",
    "check_resources",
    "cluster_address",
    "evaluation_request",
    "experiment_session",
    "free_nodes",
    "local_cpus",
    "local_nodes",
    "max_concurrent_trials",
    "missing_resources",
    "preparation_request",
    "ray_session",
    "reserved",
    "resolve_device",
    "serving_request",
    "training_request",
    "trials_request",
    "wait_for_room",
    "watched_room",
    "with_known_device",
    "with_local_device",
]
