// Package soak runs Fairlead as a waypoint and gateway for as long as SOAK says,
// under mixed load, while a control plane pushes, dies and comes back,
// certificates and roots are replaced, processes take over from each other, an
// endpoint flaps and attackers knock. No request may fail.
package soak
