//go:build !race

package netio

const raced = false
