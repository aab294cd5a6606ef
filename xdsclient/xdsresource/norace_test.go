//go:build !race

package xdsresource_test

const raced = false
