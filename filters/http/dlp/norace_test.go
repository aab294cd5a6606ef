//go:build !race

package dlp

const raced = false
