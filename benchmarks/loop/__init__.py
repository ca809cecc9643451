"""The whole loop on streams whose change points are known, beside simpler ways to keep a model fresh."""
