// Package examples holds one configuration for each of Fairlead's roles, and
// the tests that run exactly these files.
package examples
