// Package authzpb holds istiod's L4 authorization policies.
package authzpb

//go:generate sh -c "cd ../../.. && protoc -I. --go_out=. --go_opt=module=github.com/fairlead-mesh/fairlead internal/workload/authzpb/authorization.proto"
