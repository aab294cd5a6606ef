// Package dlppb is the configuration of the dlp filter as it arrives:
// generated from config.proto, used only by the filter's config.go.
package dlppb

//go:generate python3 -m grpc_tools.protoc -I ../../../.. --go_out=paths=source_relative:../../../.. filters/http/dlp/dlppb/config.proto
