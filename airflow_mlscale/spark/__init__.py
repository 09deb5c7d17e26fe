"""dynaSpark: a Spark batch job finishes just before its deadline."""
