//go:build race

package h1

// raced: the race detector allocates.
const raced = true
