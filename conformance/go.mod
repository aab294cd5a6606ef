module github.com/fairlead-mesh/fairlead/conformance

go 1.26.0

require golang.org/x/tools v0.52.0

replace github.com/fairlead-mesh/fairlead => ..
