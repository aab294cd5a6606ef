// Package regopb is the configuration of the rego filter as it arrives:
// generated from config.proto, used only by the filter's config.go.
package regopb

//go:generate python3 -m grpc_tools.protoc -I ../../../.. --go_out=paths=source_relative:../../../.. filters/http/rego/regopb/config.proto
