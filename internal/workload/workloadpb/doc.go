// Package workloadpb holds istiod's workload discovery messages.
package workloadpb

//go:generate sh -c "cd ../../.. && protoc -I. --go_out=. --go_opt=module=github.com/fairlead-mesh/fairlead internal/workload/workloadpb/workload.proto"
