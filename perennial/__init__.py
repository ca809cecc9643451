"""The ground the wings stand on: errors, settings, images, graphs, bundles, storage, the ledger."""
