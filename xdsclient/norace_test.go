//go:build !race

package xdsclient_test

const raced = false
