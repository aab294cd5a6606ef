// Package cluster proves Fairlead against a real Kubernetes API server and
// istiod, run as plain processes by the scripts of a cluster kit (run.sh says
// where). Everything happens inside a network namespace of its own.
package cluster
