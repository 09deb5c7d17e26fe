"""What Airflow reads about this provider: metadata, connection forms, links.

Loaded while Airflow's configuration initialises, so it imports nothing.
"""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata in Airflow's ``provider_info`` schema."""
    return {
        "package-name": "airflow-provider-mlscale",
        "name": "ML at scale",
        "description": "Spark deadlines, federated quality targets and serving objectives that are kept.",
        "versions": ["0.1.0"],
        "integrations": [
            {
                "integration-name": "airflow_mlscale",
                "external-doc-url": "https://pypi.org/project/airflow-provider-mlscale/",
                "tags": ["software"],
            }
        ],
        "operators": [
            {
                "integration-name": "airflow_mlscale",
                "python-modules": [
                    "airflow_mlscale.operators.spark",
                    "airflow_mlscale.operators.pyspark",
                    "airflow_mlscale.operators.federated",
                    "airflow_mlscale.operators.roma",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "airflow_mlscale",
                "python-modules": ["airflow_mlscale.sensors.federated", "airflow_mlscale.sensors.roma"],
            }
        ],
        "hooks": [
            {
                "integration-name": "airflow_mlscale",
                "python-modules": [
                    "airflow_mlscale.hooks.spark",
                    "airflow_mlscale.hooks.federated",
                    "airflow_mlscale.hooks.roma",
                ],
            }
        ],
        "triggers": [
            {
                "integration-name": "airflow_mlscale",
                "python-modules": [
                    "airflow_mlscale.triggers.federated",
                    "airflow_mlscale.triggers.roma",
                    "airflow_mlscale.triggers.spark",
                ],
            }
        ],
        "connection-types": [
            {
                "connection-type": "mlscale_spark",
                "hook-name": "ML at scale: Spark",
                "hook-class-name": "airflow_mlscale.hooks.spark.DeadlineSparkSubmitHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login", "password"],
                    "relabeling": {"host": "Master host"},
                    "placeholders": {"host": "spark://127.0.0.1", "port": "7077"},
                },
                "conn-fields": {
                    "agent": {
                        "label": "Host agent",
                        "description": "Address (unix:/path or http://host:port); empty finds one on this host",
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                    "agent_token": {
                        "label": "Host agent token",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    },
                    "master_web_url": {
                        "label": "Master web page",
                        "description": "Only if it is not at port 8080 of the master; tells workers and cores",
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                    "deploy-mode": {
                        "label": "Deploy mode",
                        "description": "client or cluster: where drivers run unless a task says otherwise",
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                    "namespace": {
                        "label": "Kubernetes namespace",
                        "description": "Of driver and executors; empty is default",
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                    "queue": {
                        "label": "YARN queue",
                        "description": "Unless a task names one",
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                    "agents": {
                        "label": "Agents of several hosts",
                        "description": 'JSON object by worker host, such as {"worker-1": "http://worker-1:8790"}',
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                    "kube_config": {
                        "label": "Kubeconfig file",
                        "description": "Kubernetes: path on workers and triggerers; empty takes the usual ones",
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                    "yarn_resourcemanager_webapp_address": {
                        "label": "YARN ResourceManager",
                        "description": "Its web address, such as http://rm:8088",
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                    "yarn_user": {
                        "label": "YARN user",
                        "description": "As whom to ask a ResourceManager with simple authentication",
                        "schema": {"type": ["string", "null"], "default": ""},
                    },
                },
            },
            {
                "connection-type": "mlscale_federated",
                "hook-name": "ML at scale: federated (NVFlare)",
                "hook-class-name": "airflow_mlscale.hooks.federated.FederatedHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login", "password", "host", "port"],
                    "relabeling": {},
                    "placeholders": {},
                },
                "conn-fields": {
                    "admin_kit": {
                        "label": "Admin start-up kit",
                        "description": "Directory of the NVFlare admin's start-up kit on the worker and the triggerer",
                        "schema": {"type": ["string", "null"]},
                    },
                    "run_store": {
                        "label": "Run store",
                        "description": "Directory that the NVFlare server writes checkpoints and metrics of runs to",
                        "schema": {"type": ["string", "null"]},
                    },
                    "simulated_sites": {
                        "label": "Simulated sites",
                        "description": "In place of a kit, for tests: names, separated by commas",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            },
            {
                "connection-type": "mlscale_roma",
                "hook-name": "ML at scale: ROMA serving",
                "hook-class-name": "airflow_mlscale.hooks.roma.RomaHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["login"],
                    "relabeling": {"password": "Token", "schema": "Scheme (http or https)"},
                    "placeholders": {"host": "127.0.0.1", "port": "8501", "schema": "http"},
                },
                "conn-fields": {
                    "ca_file": {
                        "label": "CA file",
                        "description": "https: certificates to believe, PEM; a path on workers and triggerers",
                        "schema": {"type": ["string", "null"]},
                    },
                    "verify": {
                        "label": "Verify the certificate",
                        "description": "https: false believes everybody",
                        "schema": {"type": "boolean", "default": True},
                    },
                    "client_cert": {
                        "label": "Client certificate",
                        "description": "For a daemon that asks its clients for one, PEM",
                        "schema": {"type": ["string", "null"]},
                    },
                    "client_key": {
                        "label": "Key of the client certificate",
                        "description": "If it is in another file, PEM",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            },
        ],
        "extra-links": ["airflow_mlscale.links.spark.SparkUiLink", "airflow_mlscale.links.spark.SparkMasterLink"],
        "task-decorators": [
            {"name": "deadline_pyspark", "class-name": "airflow_mlscale.decorators.spark.deadline_pyspark_task"},
            {"name": "federated", "class-name": "airflow_mlscale.decorators.federated.federated_task"},
        ],
    }
