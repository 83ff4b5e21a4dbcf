// swift-tools-version:5.7
import PackageDescription

let package = Package(
  name: "EdgeBert",
  products: [.library(name: "EdgeBert", targets: ["EdgeBert"])],
  targets: [
    // the installed library and its header: pkg-config says where
    .systemLibrary(name: "CEdgeBert", pkgConfig: "edgebert"),
    .target(name: "EdgeBert", dependencies: ["CEdgeBert"]),
  ]
)
