//go:build race

package routing_test

// The race detector makes sync.Pool drop objects at random.
func init() { raceEnabled = true }
