// Package corpus sends traffic through what a genuine istiod programs: for
// each scenario of its dumps the tests derive requests from the configuration
// itself, one for every filter chain and route, and what must come of them
// from the fields of that chain and route.
package corpus
