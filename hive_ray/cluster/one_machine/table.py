"""Each internal of Ray that this folder uses, and why. Nothing here imports Ray.

tests/test_internals.py names the one that a new release no longer has; where it is, that special path has to be mended
or deleted. Meanwhile HIVE_RAY_ONE_MACHINE=0, or a list of the other paths, goes on working.
"""

from hive_ray.internals import Internal

LOOPBACK = "cluster/one_machine/loopback.py"
RENDEZVOUS = "cluster/one_machine/rendezvous.py"
CONTROLLER = "cluster/one_machine/controller.py"
TUNING = "cluster/one_machine/tuning.py"
TRAIN = "ray.train.v2._internal"
TRAINER = "ray.train.torch.TorchTrainer"
TRAIN_CONTROLLER = f"{TRAIN}.execution.controller.TrainController"
WORKER_GROUP = f"{TRAIN}.execution.worker_group.WorkerGroup"
SCALING_POLICY = f"{TRAIN}.execution.scaling_policy.FixedScalingPolicy"
NO_IDLE_ACTOR = "the driver controls the training, and no idle actor wakes beside it"

INTERNALS = (
    # --- loopback
    Internal(
        "ray._private.ray_constants.ENABLE_RAY_CLUSTER", LOOPBACK,
        "Ray listens on the loopback address alone where it has been imported already",
    ),
    Internal(
        "ray._private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR", "cluster/addresses.py",
        "the variable that does so before it is imported, and in Ray's own processes, has this name",
        value="RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    ),
    Internal(
        "ray._private.services.get_node", LOOPBACK, "a node on a busy machine has more than 30 s to come up",
        parameters=("gcs_address", "node_id"),
    ),
    Internal(
        "ray.serve._private.replica.add_port_to_grpc_server", LOOPBACK,
        "replicas of Ray Serve listen on the loopback address, not on all", parameters=("server", "address"),
    ),
    # --- rendezvous
    Internal(
        "ray.train.torch.config._TorchBackend", RENDEZVOUS, "workers meet by a file, not by a port of PyTorch's",
        attributes=("on_start",),
    ),
    Internal(
        "ray.train.torch.config._TorchBackend.on_start", RENDEZVOUS, "the same",
        parameters=("worker_group", "backend_config"),
    ),
    Internal(
        "ray.train.torch.config._set_torch_distributed_env_vars", RENDEZVOUS,
        "what Ray Train tells workers of their ranks",
    ),
    Internal(
        f"{WORKER_GROUP}.execute_single_async", RENDEZVOUS, "each worker joins with its rank", parameters=("rank", "fn"),
    ),
    # --- controller
    Internal(f"{TRAINER}._create_default_callbacks", CONTROLLER, "two callbacks that start actors are left out"),
    Internal(f"{TRAINER}._initialize_and_run_controller", CONTROLLER, NO_IDLE_ACTOR),
    Internal(f"{TRAIN}.callbacks.DatasetsCallback", CONTROLLER, "left out: it starts an actor that asks autoscalers"),
    Internal(
        f"{TRAIN}.callbacks.placement_group_callback.PlacementGroupCleanerCallback", CONTROLLER,
        "left out: it starts an actor that asks a dashboard whether the controller lives",
    ),
    Internal(
        f"{TRAIN}.callbacks.preemption_callback.PreemptionCallback", CONTROLLER,
        "left out: nobody drains a cluster's only node",
    ),
    Internal(
        TRAIN_CONTROLLER, CONTROLLER, NO_IDLE_ACTOR,
        parameters=(
            "train_fn_ref", "train_run_context", "scaling_policy", "failure_policy", "callbacks", "validation_config",
        ),
        attributes=("run", "get_result", "get_worker_group", "worker_group_cls"),
    ),
    Internal(f"{TRAIN_CONTROLLER}._worker_group_callbacks_to_propagate", CONTROLLER, "the callback of preemptions is left out"),
    Internal(
        SCALING_POLICY, CONTROLLER, "no autoscaler is asked, by an actor of Ray's, for nodes of this machine",
        parameters=("scaling_config",), attributes=("after_controller_start",),
    ),
    Internal(
        f"{SCALING_POLICY}.after_controller_start", CONTROLLER, "the same", parameters=("train_run_context",)
    ),
    Internal(f"{SCALING_POLICY}._maybe_send_resource_request", CONTROLLER, "the same"),
    Internal(
        f"{TRAIN}.execution.worker_group.Worker", CONTROLLER, "what a worker is told as it starts",
        attributes=("actor", "distributed_context"),
    ),
    Internal(
        f"{TRAIN}.execution.worker_group.worker.RayTrainWorker.init_train_context", CONTROLLER, "the same",
        parameters=(
            "train_run_context", "distributed_context", "synchronization_actor", "storage_context", "worker_callbacks",
            "controller_actor",
        ),
    ),
    Internal(
        WORKER_GROUP, CONTROLLER, "workers that do not speak to each other through an actor",
        attributes=("has_started", "abort"),
    ),
    Internal(f"{WORKER_GROUP}._start", CONTROLLER, "a worker that dies as it is handed its work leaves no place taken"),
    Internal(
        f"{WORKER_GROUP}._init_train_context_on_workers", CONTROLLER, "the actor through which workers would speak is ended",
        parameters=("workers", "sync_actor", "train_context_args"),
    ),
    Internal(f"{WORKER_GROUP}._train_run_context", CONTROLLER, "what a worker is told as it starts"),
    Internal(f"{WORKER_GROUP}._storage_context", CONTROLLER, "the same"),
    Internal(f"{WORKER_GROUP}._worker_callbacks_to_propagate", CONTROLLER, "the same"),
    Internal(f"{WORKER_GROUP}._decorate_worker_log_file_paths", CONTROLLER, "the same", parameters=("workers",)),
    # --- tuning
    Internal("ray._private.services.JEMALLOC_SO", TUNING, "the allocator that Ray brings, for workers of this machine"),
    Internal(
        "ray.actor", TUNING, "a helper is ended once it has answered its last calls", attributes=("__ray_ready__",)
    ),
    Internal(
        "ray.data._internal.stats.STATS_ACTOR_NAME", TUNING, "this helper is found", value="datasets_stats_actor"
    ),
    Internal(
        "ray.data._internal.stats.STATS_ACTOR_NAMESPACE", TUNING, "the same", value="_dataset_stats_actor"
    ),
    Internal(
        "ray.data._internal.execution.node_trackers.actor_location", TUNING, "this helper is found by its name",
        attributes=("ActorLocationTracker",),
    ),
    Internal(
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator", TUNING,
        "this helper is found by its name", attributes=("AutoscalingCoordinator",),
    ),
)  # fmt: skip
"""By file, in the order of use."""
