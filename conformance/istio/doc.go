// Package istio tests Fairlead as a waypoint under a genuine istiod: istiod's
// own code runs in the test process, reads ordinary Kubernetes, Gateway API and
// Istio objects, and programs a running Fairlead, through which bundled
// ztunnels carry real traffic. The tests assert on what the applications saw.
package istio
