// Package charttest checks the Helm charts of this repository with Helm's own
// linter and template engine, against golden files, and as Kubernetes objects.
// It holds tests only; it is in a module of its own so that the product's
// go.mod stays free of Helm and Kubernetes.
package charttest
