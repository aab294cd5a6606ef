// Package archtest holds the architecture to what docs/ARCHITECTURE.md says.
package archtest
