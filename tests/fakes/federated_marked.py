"""A user's module whose sites leave a mark when they have read their data, and of which one never has.

Travels with the job as any user's module does, so it imports nothing of the tests.
"""


def of_site(site_name: str, marks: str, never: str):
    import threading
    from pathlib import Path

    import federated_blobs

    if site_name == never:
        threading.Event().wait()
    found = federated_blobs.of_site(site_name)
    (Path(marks) / site_name).touch()
    return found
