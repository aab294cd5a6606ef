//go:build race

package dlp

const raced = true
