//go:build race

package netio

// raced: the race detector allocates.
const raced = true
