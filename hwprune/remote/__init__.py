"""Boards: kernels compiled here, timed there, over TVM's own RPC server and tracker."""
