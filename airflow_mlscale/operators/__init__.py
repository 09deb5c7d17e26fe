"""What appears in a DAG: operators. They validate, ask the hook or the engine, defer and return."""
